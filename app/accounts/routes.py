"""All routes of accounts."""

from fastapi import APIRouter

from app.accounts import auth_routes, key_routes, user_routes

router = APIRouter()
for part in (auth_routes, user_routes, key_routes):
    router.include_router(part.router)
