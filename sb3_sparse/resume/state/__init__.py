"""What a run consists of, part by part: the model, random numbers, buffers, callbacks, the logger, the machine."""
