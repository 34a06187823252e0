"""What a program that uses fastrnn needs to see for itself: right and fast, on its machine."""
