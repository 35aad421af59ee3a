"""Timestamps: ISO text, local times and integers of a declared unit, to microseconds UTC."""
