"""Experiments on capacity: how many patterns attention, and how many binary memories, store."""
