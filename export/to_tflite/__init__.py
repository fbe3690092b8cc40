"""PyTorch to TFLite, by way of ONNX: conversion and smaller weights."""
