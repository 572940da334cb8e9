"""Speed against peers, measured in one run; nothing here is imported by the packages."""
