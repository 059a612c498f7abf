#!/bin/sh
# Virtual environments of the libraries that `viq bench store --peers FOLDER` compares with.
# Each gets its own, because their pins clash with ours; torch first, so that it stays the CPU build.
#
#     bench/peers.sh FOLDER
set -eu
folder=${1:?"usage: bench/peers.sh FOLDER"}
python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}

install() { # NAME REQUIREMENT..
    name=$1
    shift
    [ -d "$folder/$name" ] || "$python" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install -q "$torch"
    "$folder/$name/bin/python" -m pip install -q "$torch" "$@"
}

install mosaicml-streaming mosaicml-streaming==0.13.0 # torchvision is stood in for, see viq.bench.peer
install litdata litdata==0.2.76
install datasets datasets==5.2.0
install webdataset webdataset==1.0.2
