"""Why the methods work: analyses of trained networks. Nothing here trains, but fine-tuning, which calls the trainer."""
