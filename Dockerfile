# An image with Ray and superft, for `docker run`, for `docker:` in cluster.yaml and for cluster/rayjob.yaml.
#
#   docker build -t superft .                                            with CUDA: what PyPI's PyTorch brings on x86-64
#   docker build -t superft:cpu --build-arg TORCH_INDEX=URL .            without: URL as PyTorch's installation page names it
#   docker build -t superft:s3 --build-arg EXTRAS=[s3,postgres] .        with extras of pyproject.toml
#
# The driver of the card comes from the host (NVIDIA's container runtime). Data, victims and studies are mounted.
ARG BASE=python:3.12-slim
FROM ${BASE}

# wget: KubeRay asks with it whether a pod is well. rsync and ssh: `ray up` copies files with the one, and a head in a
# container starts its workers by the other. procps: pgrep, for MPS.
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# What is large and seldom changes comes first. RAY: the same on all nodes and in rayjob.yaml.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
ARG RAY=2.60.0
RUN pip install --no-cache-dir "ray[default,tune]==$RAY"

ARG EXTRAS=
WORKDIR /opt/superft
COPY pyproject.toml README.md LICENSE ./
COPY search_spaces search_spaces
COPY study study
COPY superft superft
COPY trainables trainables
RUN pip install --no-cache-dir ".$EXTRAS"

# Not root: on shared storage that would be nobody. Another user is given by `docker run --user` or `securityContext`.
RUN useradd --create-home --uid 1000 --shell /bin/bash superft
USER superft
WORKDIR /home/superft
ENV RAY_USAGE_STATS_ENABLED=0
CMD ["superft", "--help"]
