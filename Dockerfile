# frepro with everything in requirements.lock. From a checkout:
#
#   docker build -t frepro .                                                                            for CPUs
#   docker build -t frepro --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .                       for GPUs
#   docker run -v "$PWD/results:/frepro/results" frepro make reproduce PAPER=dfformer TABLE=4           add --gpus all
#
# Both bases are Ubuntu 24.04 with Python 3.12. CUDA's libraries come with torch, so the CUDA base need not hold them.
ARG BASE=ubuntu:24.04
FROM ${BASE}

# A C compiler for the kernels, and Python's headers for Triton's. Ubuntu keeps only the newest version of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# make uses an active environment that contains frepro as it is.
ENV VIRTUAL_ENV=/opt/frepro
ENV PATH=/opt/frepro/bin:$PATH

# The environment is a layer of its own, which stays while only the code changes.
WORKDIR /frepro
COPY requirements.lock ./
RUN python3 -m venv /opt/frepro \
    && /opt/frepro/bin/python -m pip install --no-cache-dir --requirement requirements.lock

COPY . .
RUN /opt/frepro/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .

CMD ["frepro", "--help"]
