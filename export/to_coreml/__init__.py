"""PyTorch to Core ML: conversion, the interpreter that runs its programs anywhere, and advice."""
