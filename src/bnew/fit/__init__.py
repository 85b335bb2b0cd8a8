"""From a folder of images to a packed network: one command, which looks, chooses, trains, packs and measures.

May import every room except for the command line.
"""
