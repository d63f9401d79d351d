"""What the commands that meet a board do: simulate, chat, verify, upload, flash, doctor."""
