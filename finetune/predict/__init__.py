"""Prediction over complete scenes: sliding windows, maps and Cloud-Optimized GeoTIFFs."""
