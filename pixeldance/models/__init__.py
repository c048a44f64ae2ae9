"""The networks: transformer, video codec, refiner, text encoder, and how they are found."""
