"""Prediction over whole scenes: sliding windows, maps and Cloud-Optimized GeoTIFFs."""
