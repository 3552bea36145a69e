"""Raw trial files in, a committed store out: pure stages, composed by `pipeline.build`."""
