"""What the owner sees of a running worker, on a terminal and as a page. One model feeds both."""
