"""LIDC-IDRI: the data module, its annotations, and label maps made of both."""
