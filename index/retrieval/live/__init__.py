"""The version that answers: how it is opened, kept up to date, and replaced by the next one."""
