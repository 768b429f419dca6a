"""HTTP: one module per dialect; auth, limits, uploads and problems are shared by all of them."""
