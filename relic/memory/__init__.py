"""The attention memory: which past latents are kept, at which stride and in which precision.

Imports nothing of ours.
"""
