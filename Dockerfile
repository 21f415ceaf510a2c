# The service in a container. Building needs the package index; running needs no network: weights and models are inside.
#   docker build -t face-quality .
#   docker run --rm --network none --read-only --tmpfs /tmp face-quality python inference.py samples
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp face-quality
FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /app

# The CPU build of torch: the default one for Linux carries several GB of CUDA. For a GPU, drop the index.
COPY requirements.txt requirements-service.txt ./
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt -r requirements-service.txt

# What scoring needs, and nothing else: no tests, no training, no results.
COPY LICENSE command_line.py inference.py ./
COPY model model
COPY faces faces
COPY labels labels
COPY scoring scoring
COPY service service
COPY samples samples
COPY weights weights

# Uploads are spooled to /tmp; nothing else is written, so the file system can be read-only.
RUN useradd --no-create-home scorer
USER scorer
RUN python inference.py samples

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Inside the container it must listen on all addresses. `-p 127.0.0.1:8000:8000` keeps it on this computer.
CMD ["python", "-m", "service", "--host", "0.0.0.0"]
