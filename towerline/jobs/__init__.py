"""What a project runs: the stages of a night, the nightly job, and jobs next to it."""
