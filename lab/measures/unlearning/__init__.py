"""What a model no longer answers after an edit, and what that costs."""
