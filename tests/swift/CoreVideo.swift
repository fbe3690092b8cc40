// PocketSam.swift imports it; the form that takes tensors uses nothing of it.
