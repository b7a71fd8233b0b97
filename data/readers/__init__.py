"""One module per upstream format, each an Ibis expression from raw files to the dataset contract."""
