"""The job ``init``: reads tables whole and writes a commented TOML for them."""
