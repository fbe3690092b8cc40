"""Checkpoint to bundle: conversion, and proof by parity. Needs the extra ``[export]``."""
