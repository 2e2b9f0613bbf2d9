"""What a backbone is trained for, one file each."""
