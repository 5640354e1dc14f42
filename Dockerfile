# docker build --tag stainssl .                            CPU
# docker build --build-arg TORCH=cuda --tag stainssl .     CUDA, with the libraries of torch's own wheel
# docker run --rm --volume "$PWD:/work" stainssl run --cores all
FROM node:22-slim AS viewer
WORKDIR /view
COPY stainssl/view/package.json stainssl/view/package-lock.json ./
RUN npm ci --ignore-scripts --omit=dev --no-audit --no-fund

FROM python:3.11-slim-bookworm

ARG TORCH=cpu

# libglib2.0-0 is for OpenCV.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libglib2.0-0=2.74.* \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/stainssl
COPY --from=viewer /view/node_modules /opt/stainssl/stainssl/view/node_modules
WORKDIR /opt/stainssl
# torch's wheel on PyPI is the one for CUDA; no GPU is seen during a build, so nothing is detected.
RUN pip install --no-cache-dir uv==0.13.* \
    && if [ "$TORCH" = cuda ]; then \
        uv pip install --system --no-cache --no-deps --requirement requirements.lock; \
    else \
        grep -vE '^(nvidia-|cuda-|triton==)' requirements.lock > /tmp/lock \
        && uv pip install --system --no-cache --no-deps --torch-backend cpu --requirement /tmp/lock \
        && rm /tmp/lock; \
    fi \
    && uv pip install --system --no-cache --no-deps .

WORKDIR /work
ENTRYPOINT ["stainssl"]
CMD ["--help"]
