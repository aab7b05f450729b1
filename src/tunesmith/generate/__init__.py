"""Choosing tokens: sampling options and the engines that answer."""
