"""A folder of pictures in, a deployed network out: the console script `mixshare`.

images  folders of pictures, read as people see them, and the archives made of them
export  the folded network with its normalisation, as ONNX or torch's archive; sizes and latency
card    the model card beside an exported network
cli     `mixshare train`, `predict` and `export`
"""
