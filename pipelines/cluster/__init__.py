"""Ray: start or join it, place trials on it, train one trial with several workers."""
