# vLLM for CPUs with layerskip-vllm, installed as `make setup` does: docs/get-started/docker.md
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# The package index of PyTorch's CPU builds, if the default index has no torch==2.13.0+cpu
ARG EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/venv
COPY requirements/cpu.txt requirements/
RUN /opt/venv/bin/python -m pip install --no-deps --only-binary=:all: --no-compile --require-hashes \
      ${EXTRA_INDEX_URL:+--extra-index-url "$EXTRA_INDEX_URL"} -r requirements/cpu.txt
# Some files are of other Python versions and do not compile.
RUN /opt/venv/bin/python -m compileall -qq -j 0 /opt/venv/lib || true
COPY requirements/vllm-metadata requirements/vllm-metadata
COPY pyproject.toml README.md LICENSE ./
COPY layerskip_vllm layerskip_vllm
RUN /opt/venv/bin/python -m pip install --no-deps --no-build-isolation ./requirements/vllm-metadata .

FROM ${PYTHON_IMAGE}
# vLLM compiles the model's graph with g++ at start; its kernels link with libnuma.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 layerskip
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER 1000
WORKDIR /home/layerskip
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["vllm", "serve"]
