"""What would I save, and what do I have to do for it?"""
