"""MediaService: uploads, what is found out about them, downloads, and who may have them."""
