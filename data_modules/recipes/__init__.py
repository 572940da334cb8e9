"""Recipes: what makes a prepared store's arrays from a raw scan."""
