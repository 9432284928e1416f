"""Kinds of tasks, one file each: everything in which segmentation differs from regression, in one object."""
