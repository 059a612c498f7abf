"""Pictures that the project makes itself, with exact questions and captions."""
