"""What a person does with models that are here: take in, carry out, show, verify, remove, tidy up."""
