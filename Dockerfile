# docker build --tag stainssl .                            CPU
# docker build --build-arg TORCH=cuda --tag stainssl .     CUDA, with the libraries of torch's own wheel
# docker run --rm --volume "$PWD:/work" stainssl run --cores all
FROM python:3.11-slim-bookworm

ARG TORCH=cpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# libglib2.0-0 is for OpenCV.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libglib2.0-0=2.74.* \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/stainssl
WORKDIR /opt/stainssl
RUN pip install --no-cache-dir uv==0.13.* \
    && if [ "$TORCH" = cuda ]; then \
        cp requirements.lock /tmp/lock && backend=auto; \
    else \
        grep -vE '^(nvidia-|cuda-|triton==)' requirements.lock > /tmp/lock && backend=cpu; \
    fi \
    && uv pip install --system --no-cache --no-deps --torch-backend "$backend" --requirement /tmp/lock \
    && uv pip install --system --no-cache --no-deps . \
    && rm /tmp/lock

WORKDIR /work
ENTRYPOINT ["stainssl"]
CMD ["--help"]
