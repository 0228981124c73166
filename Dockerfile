# A server of one run, on the CPU:
#
#     docker build -t taskfit --build-arg TORCH_INDEX=ADDRESS .
#     docker run -p 8000:8000 -v "$PWD/runs/mine:/runs/mine:ro" -v taskfit:/cache taskfit /runs/mine
#
# ADDRESS is the index of PyTorch's builds for CPUs, as its page "get started" names it. Without it
# pip takes the usual build, which brings CUDA along. The base model is fetched into /cache once.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=""
ENV HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
# That index need not have what PyTorch needs, so this comes with the rest.
RUN pip install --no-cache-dir --constraint constraints.txt --no-deps \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 \
    && pip install --no-cache-dir --constraint constraints.txt ".[serve]" \
    && useradd --create-home --uid 1000 taskfit \
    && mkdir -p /cache /runs \
    && chown 1000 /cache

USER 1000
VOLUME ["/cache"]
EXPOSE 8000

# `python` is there anyway; a slim image has no curl.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["taskfit", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/runs/mine"]
