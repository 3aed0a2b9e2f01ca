"""Starting, finding again and ending the processes of attempts."""
