"""Connections turned into clients."""
