"""What ``memfit doctor`` finds: on the machine and its set-up, and in code that it reads and does not run."""
