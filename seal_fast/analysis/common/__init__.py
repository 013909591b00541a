"""What the analyses share: trained networks, images, features, statistics, result files."""
