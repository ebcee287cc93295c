"""Poses, cameras and actions: what a camera does, in the paper's terms. Imports nothing of ours."""
