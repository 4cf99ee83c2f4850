"""The Headrace page and metrics inside Flower, and the login in front of all of it."""
