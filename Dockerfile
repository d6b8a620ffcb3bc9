# The command line without a GPU: docker build -t beam . && docker run --rm -v "$PWD:/work" beam --help
# For measuring, install BEAM into the image that has your torch or vLLM: pip install .
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --wheel-dir /wheels '/source[report]'

FROM python:3.12-slim
RUN --mount=from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'beamprof[report]' \
    && useradd --create-home beam && mkdir /work && chown beam /work
USER beam
# numba keeps what it compiled where it may write.
ENV NUMBA_CACHE_DIR=/home/beam/.cache/numba
WORKDIR /work
ENTRYPOINT ["beam"]
CMD ["--help"]
