"""The builder of data sets in PersonaKnob's form: seeds and dimensions in, verified records and their card out."""
