# The service: docker build -t letta-gym .
# EXTRAS chooses what is installed; "embeddings" among them would bring torch, "letta" real agents.
FROM python:3.11-slim AS build

ARG EXTRAS=serve,onnx,ui,postgres,letta
WORKDIR /src
RUN python -m venv /opt/letta-gym
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY skills skills
COPY letta_gym letta_gym
RUN /opt/letta-gym/bin/pip install --no-cache-dir --disable-pip-version-check \
    ".[${EXTRAS}]" -c constraints.txt

FROM python:3.11-slim

RUN useradd --uid 10001 --create-home letta-gym && mkdir /data && chown letta-gym /data
COPY --from=build /opt/letta-gym /opt/letta-gym
WORKDIR /app
COPY serve.py ./
COPY configs/serve.yaml configs/
USER letta-gym
VOLUME /data
EXPOSE 8000
ENV PATH=/opt/letta-gym/bin:$PATH OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["python", "serve.py", "--config", "configs/serve.yaml", "--set", "service.host=0.0.0.0", \
    "--set", "access.keys=true", "--set", "service.data=/data", \
    "--set", "service.store=/data/store.sqlite", "--set", "service.policy=/data/policy.safetensors"]
