"""The version that answers: opened, followed by its changes, replaced by the next one."""
