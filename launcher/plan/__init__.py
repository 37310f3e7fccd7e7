"""`dpeer plan`: what a recipe needs on a cluster, before anything is reserved."""
